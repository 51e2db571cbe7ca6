"""The main job before your eyes: a model is converted, served, promoted, and three bad ones are taken back.

Does nothing that a user could not do: it speaks to the cluster through kubectl and helm alone.
"""
