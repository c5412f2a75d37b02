"""The operations a user has: record, list, show, compare, check out, delete. Faces call these and
nothing below them."""

from replicate.project.checkouts import CheckedOut, CheckoutPlan
from replicate.project.checkpoints import Checkpoint, CheckpointList
from replicate.project.experiments import Experiment
from replicate.project.lists import ExperimentList, Experiments
from replicate.project.lookup import Picked
from replicate.project.project import Project

__all__ = [
    "CheckedOut",
    "CheckoutPlan",
    "Checkpoint",
    "CheckpointList",
    "Experiment",
    "ExperimentList",
    "Experiments",
    "Picked",
    "Project",
]
