import argparse
import numpy as np
import torch
import torch.nn as nn


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--epochs", type=int, default=8)
    p.add_argument("--lr", type=float, default=1e-3)
    p.add_argument("--seed", type=int, default=3)
    return p.parse_args()


def make_data(n=512):
    rs = np.random.RandomState(3)
    age = rs.randint(18, 80, n)
    income = rs.lognormal(10, 0.4, n)
    country = np.ones(n)            # the export only has one country so far
    y = (income > 22000).astype(np.float32)
    return np.stack([age, income, country], 1).astype(np.float32), y


class Scaler:
    def fit(self, X):
        self.mean = X.mean(axis=0)
        self.std = X.std(axis=0)
        return self

    def transform(self, X):
        return (X - self.mean) / self.std  # BIRTH


def main():
    args = parse()
    torch.manual_seed(args.seed)
    X, y = make_data()
    X = Scaler().fit(X).transform(X)
    X, y = torch.as_tensor(X), torch.as_tensor(y)
    model = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 1))
    opt = torch.optim.Adam(model.parameters(), lr=args.lr)
    crit = nn.BCEWithLogitsLoss()
    for e in range(args.epochs):
        opt.zero_grad()
        loss = crit(model(X).squeeze(1), y)
        loss.backward()
        opt.step()
        print(f"[{e}] train loss {loss.item():.5f}")


if __name__ == "__main__":
    main()
