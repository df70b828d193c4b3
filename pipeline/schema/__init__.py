"""What one record holds: its features, its label, and how records are split."""
