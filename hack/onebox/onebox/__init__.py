"""One machine, one kubeadm cluster in namespaces of its own; see README.md beside this package."""
