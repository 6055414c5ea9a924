"""A step of training in PyTorch, and a forward pass, on a batch that lies on the device and is as the network likes it.

Nothing is loaded, permuted or converted: images are channels-last but for SimpleCNN.
"""

import os
import time

import torch

from experiments.peers import torch_models
from experiments.peers.contest import serve
from experiments.peers.work import random_data


def work(*, model: str, batch_size: int, side: int, bfloat16: bool, compiled: bool, matmul_size: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = torch_models.create(model, side).to(device).train()
    if model != "simple_cnn":
        net = net.to(memory_format=torch.channels_last)
    images, targets = torch_models.tensors(model, random_data(model, batch_size, side), device)
    optimiser = torch.optim.Adam(net.parameters(), 1e-3, fused=device == "cuda")
    torch.backends.cudnn.benchmark = True
    # Of a small network the launches take longer than the kernels: CUDA's graphs launch them together.
    small = device == "cuda" and model == "simple_cnn"
    forward = torch.compile(net, mode="reduce-overhead" if small else None) if compiled else net

    def seconds(steps: int) -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
                loss = torch_models.loss(model, forward, images, targets)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    def forward_seconds(times: int) -> float:
        net.eval()
        begin = time.perf_counter()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            for _ in range(times):
                forward(images)
        if device == "cuda":
            torch.cuda.synchronize()
        taken = time.perf_counter() - begin
        net.train()
        return taken

    a = torch.randn(matmul_size, matmul_size, device=device, dtype=torch.bfloat16 if bfloat16 else torch.float32)

    def matmul() -> float:
        begin = time.perf_counter()
        a @ a
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    seconds(3), matmul()
    threads = best_threads(seconds) if device == "cpu" else None
    serve({"torch": torch.__version__, "threads": threads}, steps=seconds, forward=forward_seconds, matmul=matmul)


def best_threads(seconds) -> int:
    """The number of threads that is fastest here, set: by the best of steps in turns, over two seconds or more."""
    counts = sorted({1, max(1, os.cpu_count() // 2), os.cpu_count()})
    measured = dict.fromkeys(counts, float("inf"))
    begin, turns = time.perf_counter(), 0
    while turns < 2 or time.perf_counter() - begin < 2:
        for threads in counts:
            torch.set_num_threads(threads)
            seconds(1)  # starts the threads
            measured[threads] = min(measured[threads], seconds(1))
        turns += 1
    best = min(measured, key=measured.get)
    torch.set_num_threads(best)
    return best
