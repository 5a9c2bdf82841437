"""The paper's figures, and training curves, drawn from workdirs."""
