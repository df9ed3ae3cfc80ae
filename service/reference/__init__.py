"""The reference page of the settings, made from the model."""
