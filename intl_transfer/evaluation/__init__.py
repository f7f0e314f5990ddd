"""Evaluation of backbones by classification."""

from intl_transfer.evaluation.features import EvaluationImages, extract_features
from intl_transfer.evaluation.knn import knn_accuracy, knn_predict

__all__ = ["EvaluationImages", "extract_features", "knn_accuracy", "knn_predict"]
