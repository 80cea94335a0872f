"""What the network and its losses are computed with; needs torch alone, and Triton for its kernels.

`interface` says what a backend computes: encoder stacks, attention, dropout, losses. There are three: `cpu` (PyTorch,
made for CPUs), `portable` (PyTorch on any device, and what `torch.export` writes) and `triton_backend`. `backend`
chooses one for a device:

    backend.choose_execution -> Execution.backend -> encode, attention, dropout, losses

Below them a folder per operation:

    attention   plan; two PyTorch implementations, for CPUs and exportable; Triton
    encoder     plan; a layer in PyTorch for CPUs (the portable one is in `portable`); a whole stack in Triton
    dropout     the hash that draws masks, and its keys, for every backend; dropout alone in Triton
    losses      Triton, and the constants of the losses; the PyTorch implementations are `dmd.losses`
    common      what the Triton kernels and their launches share
"""
