"""Train a classifier of Iris plants; Replicate keeps its code, its params and every checkpoint."""

import argparse

import torch
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn

import replicate


def load_data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Measurements and species of 120 plants to learn from and of 30 to be tested on."""
    measurements, species = load_iris(return_X_y=True)
    train_x, val_x, train_y, val_y = train_test_split(
        measurements, species, test_size=0.2, stratify=species, random_state=0
    )
    return (
        torch.tensor(train_x, dtype=torch.float32),
        torch.tensor(train_y),
        torch.tensor(val_x, dtype=torch.float32),
        torch.tensor(val_y),
    )


def train(learning_rate: float, num_epochs: int) -> None:
    experiment = replicate.init(
        path=".", params={"learning_rate": learning_rate, "num_epochs": num_epochs}
    )

    torch.manual_seed(0)
    train_x, train_y, val_x, val_y = load_data()
    model = nn.Sequential(nn.Linear(4, 15), nn.ReLU(), nn.Linear(15, 3))
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    criterion = nn.CrossEntropyLoss()

    for epoch in range(num_epochs):
        optimizer.zero_grad()
        loss = criterion(model(train_x), train_y)
        loss.backward()
        optimizer.step()

        with torch.no_grad():
            accuracy = (model(val_x).argmax(dim=1) == val_y).float().mean()

        print(f"Epoch {epoch}, train loss: {loss:.3f}, validation accuracy: {accuracy:.3f}")
        torch.save(model.state_dict(), "model.pth")
        experiment.checkpoint(
            path="model.pth",
            step=epoch,
            metrics={"loss": loss.item(), "accuracy": accuracy.item()},
            primary_metric=("accuracy", "maximize"),
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--learning_rate", type=float, default=0.01)
    parser.add_argument("--num_epochs", type=int, default=100)
    args = parser.parse_args()
    train(args.learning_rate, args.num_epochs)
