// The same objects as require("cronium") gives, under the names that ES modules import.
import Cronium from "./cronium.js";

export default Cronium;
export const {
  CroniumError,
  cronium,
  deleteVariable,
  event,
  getCondition,
  getVariable,
  incrementVariable,
  input,
  output,
  setCondition,
  setVariable,
  variables,
} = Cronium;
export { Cronium };
