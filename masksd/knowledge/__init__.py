"""What a student learns from a larger teacher."""
