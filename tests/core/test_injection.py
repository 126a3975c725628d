"""Every style gives exactly the asked GPUs and overrides what the image bakes in."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cotenant.core.injection import CAPABILITIES, Style, Toolkit, detect, inject, operator_version

A, B = "GPU-aaaa", "GPU-bbbb"


@pytest.mark.parametrize(
    ("style", "visible"),
    [
        ("cdi-device-plugin", f"k8s.device-plugin.nvidia.com/gpu={A},k8s.device-plugin.nvidia.com/gpu={B}"),
        ("cdi-jit", f"runtime.nvidia.com/gpu={A},runtime.nvidia.com/gpu={B}"),
        ("env", f"{A},{B}"),
        ("nri", "void"),
        ("volume-mounts", "void"),
    ],
)
def test_the_variables_are_always_set_whatever_the_image_bakes_in(style: str, visible: str) -> None:
    made = inject(style, [A, B], "engine")

    assert made.env == (("NVIDIA_VISIBLE_DEVICES", visible), ("NVIDIA_DRIVER_CAPABILITIES", CAPABILITIES))


@pytest.mark.parametrize("style", list(Style))
def test_no_gpu_asked_is_no_gpu_seen(style: Style) -> None:
    made = inject(style, [], "engine")

    assert dict(made.env)["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert (made.annotations, made.volumes, made.mounts) == ((), (), ())


def test_nri_names_the_container_and_no_runtime_class() -> None:
    made = inject(Style.NRI, [A], "vllm", runtime_class="nvidia")

    assert made.annotations == (("nvidia.cdi.k8s.io/container.vllm", f"k8s.device-plugin.nvidia.com/gpu={A}"),)
    assert made.runtime_class is None


def test_volume_mounts_mount_dev_null_once_per_gpu() -> None:
    made = inject(Style.VOLUME_MOUNTS, [A, B], "engine", runtime_class="nvidia-custom")

    assert [m["mountPath"] for m in made.mounts] == [f"/var/run/nvidia-container-devices/{gpu}" for gpu in (A, B)]
    assert {m["name"] for m in made.mounts} == {v["name"] for v in made.volumes}
    assert made.volumes[0]["hostPath"]["path"] == "/dev/null"
    assert made.runtime_class == "nvidia-custom"


@pytest.mark.parametrize("style", list(Style))
def test_fields_are_plain_json(style: Style) -> None:
    made = inject(style, [A], "engine")

    assert json.loads(json.dumps([made.env_list, list(made.volumes), list(made.mounts)]))


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="magic"):
        inject("magic", [A], "engine")


def policy(version: str | None = "v26.7.0", **cdi: Any) -> dict[str, Any]:
    """A ClusterPolicy as the GPU Operator makes it."""
    labels = {} if version is None else {"app.kubernetes.io/version": version}
    return {"metadata": {"name": "cluster-policy", "labels": labels}, "spec": {"cdi": cdi} if cdi else {}}


@pytest.mark.parametrize(
    ("cluster_policy", "style"),
    [
        (policy(enabled=True, nriPluginEnabled=False), Style.CDI_DEVICE_PLUGIN),
        (policy(), Style.CDI_DEVICE_PLUGIN),
        (policy("v25.10.1", enabled=True), Style.CDI_DEVICE_PLUGIN),
        (policy("v25.3.4", enabled=True), Style.ENV),
        (policy("v25.3.4", enabled=True, default=True), Style.CDI_DEVICE_PLUGIN),
        (policy(enabled=False), Style.ENV),
        (policy(None, enabled=True), Style.CDI_DEVICE_PLUGIN),
        (policy(None), Style.CDI_JIT),
        (None, Style.CDI_JIT),
    ],
)
def test_the_style_follows_the_cluster_policy(cluster_policy: dict[str, Any] | None, style: Style) -> None:
    found = detect(["nvidia"], cluster_policy)

    assert found.style is style
    assert found.reason


def test_nri_needs_no_runtime_class() -> None:
    assert detect([], policy(enabled=True, nriPluginEnabled=True)).style is Style.NRI


def test_without_runtime_class_or_nri_there_is_no_style_and_a_hint() -> None:
    found = detect(["kata"], policy(enabled=True))

    assert found.style is None
    assert "GPU Operator" in found.reason


@pytest.mark.parametrize(
    ("toolkit", "style"),
    [
        (Toolkit(mode="legacy"), Style.ENV),
        (Toolkit(mode="cdi", default_kind="management.nvidia.com/gpu"), Style.CDI_DEVICE_PLUGIN),
        (Toolkit(mode="auto"), Style.CDI_JIT),
        (Toolkit(accept_env=False, accept_mounts=True), Style.VOLUME_MOUNTS),
    ],
)
def test_a_toolkit_installed_by_hand_is_asked(toolkit: Toolkit, style: Style) -> None:
    assert detect(["nvidia"], None, toolkit).style is style


@pytest.mark.parametrize("spec", [None, [], {"cdi": None}, {"cdi": "yes"}])
def test_a_strange_cluster_policy_does_not_break_it(spec: Any) -> None:
    assert detect(["nvidia"], {"metadata": {}, "spec": spec}).style is not None


def test_the_operator_version_is_read_from_either_label() -> None:
    assert operator_version({"metadata": {"labels": {"app.kubernetes.io/version": "v25.10.1"}}}) == (25, 10)
    assert operator_version({"metadata": {"labels": {"helm.sh/chart": "gpu-operator-v26.7.0"}}}) == (26, 7)
    assert operator_version({"metadata": {"labels": {"app.kubernetes.io/version": "master"}}}) is None
