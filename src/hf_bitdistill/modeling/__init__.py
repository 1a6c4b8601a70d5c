"""What makes a student of a model, and a model of a student's files."""
