"""What is wrong with a model that does not train: one file per kind of evidence."""
