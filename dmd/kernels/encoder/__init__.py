"""A stack of pre-norm transformer encoders: what it is, a layer made for CPUs, and the stack in Triton.

`plan` says what a stack and a layer are beside their tensors. In Triton:

    triton_stack            triton_embed, then triton_layer for each level, then triton_norm
    triton_layer            forward_kernels around the attention; backward_kernels and weight_gradient_kernels after it
    weight_gradient_kernels products of what backward_kernels stored, in shares; weight_sum_kernels adds those up

Files whose names end in `_kernels` hold kernels with the functions that launch them; `triton_layer_call` has what the
launches of a layer share.
"""
