"""A real Kubernetes control plane on loopback, for tests and the demo.

`control_plane.ControlPlane` starts one, `access.Cluster` reaches one, `api.Api` reads and writes objects in it,
`build` makes the programs it consists of, `processes` makes sure that nothing outlives its owner.
"""
