"""One real Kubernetes node on this machine, without a GPU: kubelet, containerd, NVIDIA's runtime, and stand-in cards.

`lab` runs it in namespaces of its own, `image` writes container images without an engine, `driver` stands in for the
card's driver and `engine` for vLLM. The rest is what is tested: the chart, the controller and the agent as they are.
"""
