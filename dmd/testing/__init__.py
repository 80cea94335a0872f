"""What tests need inside a process that trains.

`fault_points` marks the places where a test can stop a process as a power cut, a deadlock or a scheduler would, or
raise an error that one rank alone may meet. The environment variable DMD_FAULT chooses the place, the visit and the
rank; the launcher carries it to ranks on other hosts. Without it a fault point does nothing. It is part of the program,
since the tests run the real commands.

    DMD_FAULT=kill:checkpoint.model@2@0 dmd train ...    # rank 0 dies while it writes its second checkpoint

API: `fault_points.fault_point`.
"""
