"""The controller: API, store and reconcilers. Entry point: `controller.main`."""
