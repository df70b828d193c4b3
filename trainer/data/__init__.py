"""An opened dataset, and the meaning of the values that it stores."""
