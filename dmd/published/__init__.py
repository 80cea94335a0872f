"""The published implementation (mdswyz/DMD): its parameter names, and its checkpoints as runs of ours."""
