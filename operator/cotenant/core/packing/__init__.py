"""Replicas + what is free -> Plan: the problem and its answer, the fast pass, the search, the reasons, the bound."""
