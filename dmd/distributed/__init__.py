"""How the ranks of a training act as one.

`engine` is the interface through which the training loop asks for a backward pass and an optimizer step;
`launch.trainer.engine` implements it with DeepSpeed. `collectives` are the decisions that ranks make together, `errors`
what all of them raise alike, and `sharing` makes the process groups of ranks that share a ghost batch.
"""
