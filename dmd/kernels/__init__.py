"""The heavy parts of DMD's encoders and losses; needs torch alone (and Triton for the fused form)."""
