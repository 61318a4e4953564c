// Shows the description beside this page. Nothing that is typed here is kept, and nothing leaves for other hosts.
if (window.SwaggerUIBundle) {
  window.SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#reference",
    deepLinking: true,
    defaultModelsExpandDepth: 0,
    displayRequestDuration: true,
    persistAuthorization: false,
    tagsSorter: "alpha",
    validatorUrl: null,
  });
}
