"""What the admission webhooks decide: AdmissionReview (admission.k8s.io/v1) in and out, as plain data."""
