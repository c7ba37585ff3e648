"""What the stages ask of a user's model: its tensors, inputs, outputs, mode, and its plan."""
