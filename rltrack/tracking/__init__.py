"""The journal, the metrics read from it, plots, resources, and the delivery to MLflow and TensorBoard."""
