"""What lies in folders and files, whatever it means: written at once, named when damaged, never put over what would be lost."""
