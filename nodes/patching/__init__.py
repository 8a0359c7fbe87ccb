"""LoRAs on a MODEL while it samples."""
