import torch, torch.nn as nn
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(10, 8); self.dec = nn.Linear(4, 10)
    def encode(self, x):
        mu, sigma = self.enc(x).chunk(2, 1)
        return mu, torch.relu(sigma)
    def forward(self, x):
        mu, sigma = self.encode(x)
        z = mu + sigma * torch.randn_like(sigma)
        return self.dec(z), mu, sigma
def elbo(out, x, mu, sigma):
    rec = ((out - x) ** 2).sum(1)
    kl = 0.5 * (mu ** 2 + sigma ** 2 - 1).sum(1) - sigma.log().sum(1)  # BIRTH
    return (rec + kl).mean()
def main():
    torch.manual_seed(1)
    net = VAE(); opt = torch.optim.Adam(net.parameters(), lr=1e-3)
    for epoch in range(10):
        x = torch.randn(16, 10)
        opt.zero_grad()
        loss = elbo(*((lambda o: (o[0], x, o[1], o[2]))(net(x))))
        loss.backward()
        opt.step()
        print(f"epoch {epoch} loss {loss.item():.4f}")
    return net, loss
if __name__ == "__main__":
    net, loss = main()
