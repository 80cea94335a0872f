"""`dmd demo` runs other commands, which are interrupted with it."""

from launch.commands import run_step


def test_a_step_answers_an_interrupt_itself_and_in_its_own_time(interruptible):
    """Python's subprocess.run kills a command 0.25 s after an interrupt of its own."""
    assert run_step(["sh", "-c", "trap 'sleep 0.6; exit 75' INT; kill -INT $PPID $$; exit 1"]) == 75
    assert run_step(["sh", "-c", "kill -KILL $$"]) == 137
