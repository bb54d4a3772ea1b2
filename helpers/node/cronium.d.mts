import Cronium from "./cronium.js";

export default Cronium;
export { Cronium };
export type Cronium = InstanceType<typeof Cronium>;
export type CroniumError = InstanceType<typeof Cronium.CroniumError>;
export declare const CroniumError: typeof Cronium.CroniumError;
export declare const cronium: typeof Cronium.cronium;
export declare const deleteVariable: typeof Cronium.deleteVariable;
export declare const event: typeof Cronium.event;
export declare const getCondition: typeof Cronium.getCondition;
export declare const getVariable: typeof Cronium.getVariable;
export declare const incrementVariable: typeof Cronium.incrementVariable;
export declare const input: typeof Cronium.input;
export declare const output: typeof Cronium.output;
export declare const setCondition: typeof Cronium.setCondition;
export declare const setVariable: typeof Cronium.setVariable;
export declare const variables: typeof Cronium.variables;
