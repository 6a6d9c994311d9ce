"""The guard as a service: a REST API in front of one guard; requests share its encoder. Needs ``outclass[serve]``."""
