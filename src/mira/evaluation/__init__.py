"""Protocols over frozen features, their floors, and features and weights for use elsewhere."""

from mira.evaluation.embed import write_embeddings
from mira.evaluation.export import write_backbone
from mira.evaluation.features import Features, extract_features
from mira.evaluation.knn import knn_accuracy, knn_predict, nearest
from mira.evaluation.protocol import evaluate_knn
from mira.evaluation.results import Result, append_results, read_results
from mira.evaluation.table import print_results

__all__ = [
    "Features",
    "Result",
    "append_results",
    "evaluate_knn",
    "extract_features",
    "knn_accuracy",
    "knn_predict",
    "nearest",
    "print_results",
    "read_results",
    "write_backbone",
    "write_embeddings",
]
