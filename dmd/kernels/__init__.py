"""What the network and its losses are computed with; needs torch alone, and Triton for its kernels.

`interface` says what a backend computes: encoder stacks, attention, dropout, losses. There are three: `cpu` (PyTorch,
made for CPUs), `portable` (PyTorch on any device, and what `torch.export` writes) and `triton_backend`. `backend`
chooses one for a device. Below them a folder per operation:

    attention/  encoder/  dropout/  losses/     and common/, what their Triton kernels share

Each holds what the operation is beside its tensors (`plan`), its PyTorch implementations, and its Triton kernels with
the functions that launch them and their autograd.
"""
