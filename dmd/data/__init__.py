"""From shards to ghost batches on a device: what a step of training, or an evaluation, is fed with.

`plan` is the arithmetic of an epoch: which samples make up which ghost batch, step, forward pass and rank share, for
any number of ranks. `loader` reads them ahead of their use in threads, as a `Batch`, which the caller copies to its
device. `targets` says what the model is to predict of a sample (its sentiment or its class), and whether the shards
have it. `synthetic` makes a random batch in the shapes of a data set, to try a pass before the first real one.

    shards -> epoch order (`data_shards.reading.shuffle`) -> plan -> loader -> Batch -> dmd.training, dmd.evaluation

API: `plan.EpochPlan`, `loader.training_steps`, `loader.evaluation_batches`, `targets.targets`.
"""
