"""The metrics read from a journal, plots, resources, and the delivery to MLflow and TensorBoard."""
