"""The objectives of the models beside DMD that have more than the task loss of their fused head."""
