"""Losses of ghost batches as Triton kernels, and the constants that they share with PyTorch's (`dmd.losses`).

`triton_backend.TritonLosses` calls an autograd function of each module:

    graph        FusedGraph: the eight task losses; of both GD-Units edges, logit distillation and regulariser, and the
                 representation distillation of the heterogeneous one; graph_forward_kernels, graph_backward_kernels
    decoupling   FusedDecoupling: reconstruction, cycle and orthogonality of a modality
    margin       FusedMargin: the published margin loss

`sample_weights` is the mean over a ghost batch in kernels. `constants` holds plain numbers; `dmd.losses` and
`dmd.model.graph` import them, so it needs no Triton.

    predictions, representations, features, labels, mask -> losses [rows, G] -> dmd.losses.triton_terms
"""
