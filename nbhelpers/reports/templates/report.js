(function () {
  var button = document.getElementById("toggle-code");
  var shown = false;
  button.addEventListener("click", function () {
    shown = !shown;
    document.querySelectorAll("details.code").forEach(function (box) { box.open = shown; });
    button.setAttribute("aria-pressed", String(shown));
    button.textContent = shown ? "Hide all code" : "Show all code";
  });
})();
