"""What the Triton kernels, their launches and their autograd functions share.

    launching         `launch`, by which every kernel is launched, and arguments that many kernels take
    cards             the card of a device; `KernelError` where a kernel cannot run on it
    block_sizes       block sizes for a number of channels, the same on every card
    measured_sizes    those that were measured on a card, in place of the rule's
    triton_rows       device functions: rows of encoders of different lengths, dropout's hash, layer norm
    triton_products   device function: the matrix product in the precision that the model runs in
    saved             `save` and `restore`: named tuples of tensors that autograd keeps for backward

An autograd function takes sizes from `measured_sizes`, launches by `launching`, and keeps its tensors by `saved`.
"""
