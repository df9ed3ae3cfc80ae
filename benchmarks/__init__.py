"""Print every number in the documents, each with the limit that is measured in the same run."""
