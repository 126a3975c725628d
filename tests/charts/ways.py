"""Ways to set the chart that every rule is tried with."""

from __future__ import annotations

from tests.charts.render import Object

EVERYTHING: Object = {
    "networkPolicy": {"enabled": True},
    "metrics": {
        "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus", "team": "observers"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
    },
    "hub": {"endpoint": "https://hub.example.org", "offline": True, "tokenSecret": {"name": "hub"}},
    "admissionPolicies": {"ownership": {"enabled": True}, "visibleDevices": {"enabled": True}},
    "imagePullSecrets": [{"name": "registry"}],
    "commonLabels": {"team": "ml"},
    "commonAnnotations": {"owner": "ml"},
    "controller": {
        "replicas": 2,
        "podLabels": {"a": "b", "team": "serving"},
        "podAnnotations": {"c": "d", "kubectl.kubernetes.io/default-container": "proxy"},
        "extraEnv": [
            {"name": "HTTPS_PROXY", "value": "http://proxy:3128"},
            {"name": "HF_ENDPOINT", "value": "http://x"},
        ],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca", "readOnly": True}],
        "nodeSelector": {"kubernetes.io/os": "linux"},
        "priorityClassName": "system-cluster-critical",
        "env": {"COTENANT_RESYNC": "60", "COTENANT_LOG_LEVEL": "DEBUG", "COTENANT_RUNTIME_CLASS": ""},
        "image": {"digest": f"sha256:{'a' * 64}"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {"podAntiAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
        ],
    },
    "agent": {"podLabels": {"a": "b"}, "serviceAccount": {"annotations": {"x": "y"}}},
    "extraObjects": [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "more", "namespace": "{{ .Release.Namespace }}"}}
    ],
}
WAYS: dict[str, Object] = {
    "defaults": {},
    "everything": EVERYTHING,
    "some namespaces": {"watchNamespaces": ["document-ai", "search"]},
    "no agent": {"agent": {"enabled": False}},
    "one namespace": {"agent": {"namespace": ""}},
    "nri": {"injection": {"style": "nri"}, "agent": {"gpuAccess": "nri"}},
    "volume mounts": {"injection": {"style": "volume-mounts"}},
    "closed up": {
        "networkPolicy": {"enabled": True},
        "controller": {"replicas": 2, "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]},
        "hub": {"endpoint": "https://hub.example.org", "tokenSecret": {"name": "hub"}},
    },
    "nothing optional": {
        "crds": {"enabled": False},
        "namespace": {"create": False},
        "namespaceOverride": "",
        "aggregateRoles": {"enabled": False},
        "readerRole": {"enabled": False},
        "admissionPolicies": {"agents": {"enabled": False}},
        "metrics": {"service": {"enabled": False}},
        "holder": {"enabled": False},
        "controller": {"podDisruptionBudget": {"enabled": False}},
    },
}
