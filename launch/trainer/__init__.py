"""What a rank does: join the others, check, build, train.

`main` is the rank of `launch/train.py`. `engine` joins the process group and is the training loop's engine over
DeepSpeed (`deepspeed_config`, `adam`, `joined_system`, `reduction`, `zero_state`). `preflight` has the checks that
`dmd train` makes before any rank starts and each rank makes again. `build.make_training` builds this rank's part, after
`agree` has compared the facts of all ranks. `threads`, `host_tuning` and `determinism` set up the process. A rank of
Ray's (`cluster`) begins at `engine`. `in_process` is the only rank of a training in its caller's process (`dmd.train`).
"""
