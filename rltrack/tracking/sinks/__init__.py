"""Where records are delivered: MLflow and TensorBoard."""
