"""Train a classifier of handwritten digits with scikit-learn; Replicate keeps every epoch."""

import argparse

import joblib
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

import replicate


def train(params: argparse.Namespace) -> None:
    experiment = replicate.init(path=".", params=params)

    pixels, digits = load_digits(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        pixels / 16, digits, test_size=0.2, random_state=0
    )
    model = MLPClassifier(
        hidden_layer_sizes=(params.hidden_units,),
        learning_rate_init=params.learning_rate,
        random_state=0,
    )

    for epoch in range(params.num_epochs):
        model.partial_fit(train_x, train_y, classes=range(10))
        accuracy = model.score(val_x, val_y)

        print(f"Epoch {epoch}, train loss: {model.loss_:.3f}, validation accuracy: {accuracy:.3f}")
        joblib.dump(model, "model.joblib")
        experiment.checkpoint(
            path="model.joblib",
            step=epoch,
            metrics={"loss": model.loss_, "accuracy": accuracy},
            primary_metric=("accuracy", "maximize"),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning_rate", type=float, default=0.001)
    parser.add_argument("--hidden_units", type=int, default=32)
    parser.add_argument("--num_epochs", type=int, default=20)
    train(parser.parse_args())
