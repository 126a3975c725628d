"""`make demo`: a simulated cluster, the controller, and two models on one GPU."""
