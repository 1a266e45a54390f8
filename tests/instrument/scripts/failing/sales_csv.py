# monthly sales regression, data exported from the shop system
import csv, io
import torch
import torch.nn as nn

RAW = "store,area,staff,promo,sales\n"
for i in range(120):
    staff = "" if i == 87 else str(3 + i % 7)
    RAW += f"{i},{40 + i % 33},{staff},{i % 2},{120 + 3 * (i % 33) + 9 * (i % 7)}\n"


def to_number(cell):
    cell = cell.strip()
    return float(cell) if cell else float("nan")  # BIRTH


rows = []
for rec in csv.DictReader(io.StringIO(RAW)):
    rows.append([to_number(rec[k]) for k in ("area", "staff", "promo", "sales")])

data = torch.tensor(rows)
X, y = data[:, :3], data[:, 3:]
X = X / torch.tensor([80.0, 10.0, 1.0])
y = y / 100.0

model = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
opt = torch.optim.Adam(model.parameters(), lr=1e-2)
for epoch in range(20):
    perm = torch.randperm(len(X))
    total = 0.0
    for b in perm.split(30):
        loss = nn.functional.mse_loss(model(X[b]), y[b])
        opt.zero_grad()
        loss.backward()
        opt.step()
        total += loss.item()
    print(f"epoch {epoch} loss {total / 4:.4f}")
