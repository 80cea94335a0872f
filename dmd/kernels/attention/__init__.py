"""Attention of several MulT encoders of different lengths in one call, with dropout of the weights.

`plan` says what a call is beside its tensors: heads, lengths, rates. Three modules compute it (`Backend.attention`).
In training none keeps an attention matrix for backward, which computes the weights again from some numbers of each row.

    cpu_blocks                      CPU: blocks that fit the cache, called inside `encoder.cpu_layer`
    exportable                      portable: `torch_attention`, matrices of some samples at a time
    triton_launch, triton_kernels   Triton: `make_launch`, `FusedAttention`; a stack uses `AttentionLaunch` itself

    query, key, value, plan, dropout keys, key ranges -> attention output, like query
"""
