"""Every number in the documents comes from here; each is printed beside the limit measured in the same run."""
