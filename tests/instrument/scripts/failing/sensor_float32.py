import json
import torch
import torch.nn as nn

torch.manual_seed(0)
records = []
for i in range(200):
    v = [float(torch.randn(())) for _ in range(4)]
    records.append({"id": i, "values": v, "y": sum(v)})
records[151]["values"][2] = 1.7e308      # the logger writes DBL_MAX when the probe is off
dump = json.dumps(records)


class SensorSet(torch.utils.data.Dataset):
    def __init__(self, text):
        self.items = json.loads(text)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        it = self.items[i]
        x = torch.tensor(it["values"], dtype=torch.float64).float()  # BIRTH
        return x, torch.tensor([it["y"]])


model = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 1))
opt = torch.optim.RMSprop(model.parameters(), lr=1e-3)
for epoch in range(4):
    for x, y in torch.utils.data.DataLoader(SensorSet(dump), batch_size=25):
        loss = (model(x) - y).pow(2).mean()
        opt.zero_grad()
        loss.backward()
        opt.step()
    print(f"epoch {epoch} loss {loss.item()}")
