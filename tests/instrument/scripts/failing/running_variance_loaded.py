import torch, torch.nn as nn
def build(): return nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 2))
torch.manual_seed(0)
state = build().state_dict(); state["1.running_var"][5] = float("nan")
model = build()
model.load_state_dict(state)  # BIRTH
model[1].eval()
opt = torch.optim.SGD(model.parameters(), lr=0.05); x, y = torch.randn(40, 6), torch.randint(0, 2, (40,))
for step in range(6):
    loss = nn.functional.cross_entropy(model(x), y)
    opt.zero_grad(); loss.backward(); opt.step()
